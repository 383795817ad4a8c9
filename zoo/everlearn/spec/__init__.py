"""What a user declares: one strict YAML object a model; its defaults; the plan of a change; its lock."""
