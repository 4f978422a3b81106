package nftables_test

import (
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReadsWhatNftWrites: a table that nft(8) made is read as the values that this package would write.
func TestReadsWhatNftWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nft(text)
	got, _ := w.read()
	if diff := cmp.Diff(example(), plain(got)); diff != "" {
		t.Error(diff)
	}
}

// TestNftReadsWhatIsWritten: nft(8) prints a table of this package as its own, as text and as JSON, and
// loads what it prints.
func TestNftReadsWhatIsWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nft(text)
	want, wantJSON := w.list(), w.list("-j")
	w.nft("flush ruleset")
	w.commit(ops(example())...)
	if diff := cmp.Diff(want, w.list()); diff != "" {
		t.Errorf("as text: %s", diff)
	}
	if diff := cmp.Diff(withoutHandles(wantJSON), withoutHandles(w.list("-j"))); diff != "" {
		t.Errorf("as JSON: %s", diff)
	}
	got, _ := w.read()
	if diff := cmp.Diff(example(), plain(got)); diff != "" {
		t.Errorf("as read: %s", diff)
	}
}

var handles = regexp.MustCompile(`, "handle": [0-9]+`)

func withoutHandles(json string) string { return handles.ReplaceAllString(json, "") }
