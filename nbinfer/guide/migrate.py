def migrate(): pass
def migrate_line(o, c): pass
