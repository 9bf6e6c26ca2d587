"""What a lost or damaged database is made again from: a copy of what files cannot tell, and the files themselves."""
