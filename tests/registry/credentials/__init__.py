"""Logins: files, programs, precedence."""
