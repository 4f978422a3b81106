package escape_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"multihomed/internal/escape"
)

func TestName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"enp2s0": "enp2s0", "Büro 2": "Büro 2", "a\xffb": `a\xffb`, `a\xffb`: `a\\xffb`, "a\\b": `a\\b`,
		"\x1b[31mred": `\x1b[31mred`, "a\nb": `a\x0ab`, "\u202eevil": `\u202eevil`, "\ufffd": "\ufffd", "": "",
		"a\u2028b": `a\u2028b`, "\u00a0": `\u00a0`,
	} {
		got := escape.Name(in)
		if got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
		if back := escape.Original(got); back != in {
			t.Errorf("%q comes back as %q", in, back)
		}
	}
	if got := escape.Text("profile a\\xff\nb\xff"); got != `profile a\xff\x0ab\xff` {
		t.Errorf("a sentence becomes %q", got)
	}
}

func FuzzName(f *testing.F) {
	for _, seed := range []string{"wan0", "a\xff", `a\xff`, "\\", "\\x", "\x00\n", "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := escape.Name(name)
		if escape.Original(got) != name {
			t.Errorf("%q becomes %q and comes back as %q", name, got, escape.Original(got))
		}
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\n\r\x1b\x00") {
			t.Errorf("%q becomes %q", name, got)
		}
	})
}
