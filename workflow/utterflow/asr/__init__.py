"""Stage `asr`: n-best lists from Whisper."""
