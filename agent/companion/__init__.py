"""SYN cookies that balancers send and servers accept: what both share, and the server's side."""
