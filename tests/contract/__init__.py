"""What a content store and a snapshotter owe their users, by both doors: calls and files."""
