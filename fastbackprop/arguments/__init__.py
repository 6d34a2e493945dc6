"""The arguments of calls: checks and their messages, the checked arguments of a call, and the addresses of arrays."""
