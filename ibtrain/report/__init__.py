"""`ibtrain report RUN ...`: runs on a page that one can look at, from what their directories hold.

What is read was written by a program that may still be writing, may have been killed, or may be
somebody else's: a half line is passed over, sizes are bounded, and no text is trusted.
"""
