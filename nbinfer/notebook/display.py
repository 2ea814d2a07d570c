def visible(t): return t.replace("\x1b","␛")
def frame_text(df): return df.to_string(max_colwidth=60)
def install_formatters(ip): pass
def uninstall_formatters(ip): pass
