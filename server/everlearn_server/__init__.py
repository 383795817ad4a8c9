"""The everlearn service: `rpc` speaks, `engine` works, `store` keeps, `app` is the only place that connects them."""
