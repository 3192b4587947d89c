"""The commands of `dues`: each file is one command or group, in a variable `command`, named like the file.

What a command needs is imported when it runs, so that `dues --help` stays quick.
"""
