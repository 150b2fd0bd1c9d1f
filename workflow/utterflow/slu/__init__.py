"""Stage slu: spoken language understanding, scenario, action and entities of spoken commands."""
