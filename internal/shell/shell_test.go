package shell_test

import (
	"os/exec"
	"strings"
	"testing"

	"multihomed/internal/escape"
	"multihomed/internal/shell"
)

// TestQuote: sh reads each word back.
func TestQuote(t *testing.T) {
	t.Parallel()
	words := []string{"wan0", "", "a;id", "$(id)", "`id`", `"<b>&`, "it's", `back\slash`, "w\xffn", "e\x1b[31m", "100%\x01", "*", "~", "é", "a\\'\xfe%s"}
	quoted := shell.Command(words...)
	if escape.Text(quoted) != quoted {
		t.Errorf("not printable: %q", quoted)
	}
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", "printf '%s\\n' "+quoted).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(words, "\n") + "\n"; string(out) != want {
		t.Errorf("sh reads %q, want %q", out, want)
	}
}

func TestPlainWordsStayPlain(t *testing.T) {
	t.Parallel()
	const want = "sysctl -w net.ipv4.conf.eth0/100.rp_filter=2"
	if got := shell.Command(strings.Fields(want)...); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
