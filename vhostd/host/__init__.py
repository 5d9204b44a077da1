"""What a program uses of its host: files, folders, threads, time."""
