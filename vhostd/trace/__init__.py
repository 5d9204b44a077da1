"""Between a front-end and a back-end: passes on what they say, shows it, keeps it, and says it again."""
