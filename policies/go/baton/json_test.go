package baton

import (
	"encoding/json"
	"testing"
)

func TestAppendJSON(t *testing.T) {
	var every []byte
	for c := range 256 {
		every = append(every, string(rune(c))...)
	}
	for _, text := range []string{"", "a", `"`, `\\`, "<&>\u2028🦀", string(every)} {
		var read string
		raw := AppendJSON(nil, text)
		if err := json.Unmarshal(raw, &read); err != nil || read != text {
			t.Errorf("%s: %q, %v", raw, read, err)
		}
	}
	if got := string(AppendJSON([]byte("x"), "\"\\\b\f\n\r\t\x01\x1f<é")); got != `x"\"\\\b\f\n\r\t\u0001\u001f<é"` {
		t.Error(got)
	}
}
