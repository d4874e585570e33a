"""Who can talk to it?"""
