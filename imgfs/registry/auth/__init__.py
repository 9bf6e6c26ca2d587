"""From a 401 to what a request shows: challenges, logins, tokens, and how long they are kept."""
