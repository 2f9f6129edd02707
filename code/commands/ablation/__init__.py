"""Tables of models: from YAML to command lines, and what they scored."""
