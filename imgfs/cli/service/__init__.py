"""Commands about the daemon: start it, stop it, show its configuration and plugins, examine the host."""
