def report(config):
    return ""
