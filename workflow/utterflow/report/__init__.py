"""Report: summary tables and figures over runs."""
