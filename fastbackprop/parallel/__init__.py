"""Who runs what: how many threads there may be, the workers, and how compiled code shares a call among them."""
