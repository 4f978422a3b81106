package news_test

import (
	"slices"
	"testing"

	"multihomed/internal/news"
)

func TestSet(t *testing.T) {
	t.Parallel()
	n := news.NewSet()
	for _, name := range []string{"b", "a", "b"} {
		n.Touch(name)
	}
	<-n.Changed()
	select {
	case <-n.Changed():
		t.Error("told twice")
	default:
	}
	if got := n.Take(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("took %q", got)
	}
	if got := n.Take(); len(got) > 0 {
		t.Errorf("took %q again", got)
	}
}
