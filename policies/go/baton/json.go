package baton

// AppendJSON appends a string as JSON has it (RFC 8259, 7), with its quotation marks. It is for the data of a handoff, which
// encoding/json takes longer to write than most policies take for all the rest. What is no UTF-8 stays none: strings of
// the gateway are UTF-8, but values of header fields may be anything (strings.ToValidUTF8 mends them).
func AppendJSON(text []byte, value string) []byte {
	const digits = "0123456789abcdef"
	text = append(text, '"')
	start := 0
	for i := range len(value) {
		c := value[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		text = append(append(text, value[start:i]...), '\\')
		start = i + 1
		switch c {
		case '"', '\\':
			text = append(text, c)
		case '\b':
			text = append(text, 'b')
		case '\f':
			text = append(text, 'f')
		case '\n':
			text = append(text, 'n')
		case '\r':
			text = append(text, 'r')
		case '\t':
			text = append(text, 't')
		default:
			text = append(text, 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(append(text, value[start:]...), '"')
}
