"""SYN cookies that balancers send and servers take: what both share, and the server's side."""
