"""The page of an evaluation, and what page and terminal share."""
