"""The validated configuration: the only place where defaults and limits stand."""
