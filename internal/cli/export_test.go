package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/explain"
	"multihomed/internal/handoff"
	"multihomed/internal/status"
)

// Render shows a status as `status` does.
func Render(w io.Writer, s Status, colour bool, width int, verbose bool) error {
	return render(w, s, look{paint: painter(colour), width: width, verbose: verbose})
}

// RenderExplanation shows an explanation as `explain` does.
func RenderExplanation(w io.Writer, d explain.Document, colour bool, width int, verbose bool) error {
	return renderExplanation(w, d, look{paint: painter(colour), width: width, verbose: verbose})
}

// For tests of the parts that render uses.
var (
	Wrap         = wrap
	Clean        = clean
	CompareNames = status.CompareNames
	Effective    = effective
	ShellWord    = shellWord
)

// ShowOnly is what `status WORD...` shows.
func ShowOnly(w io.Writer, s Status, words ...string) error {
	if err := restrict(&s, words); err != nil {
		return err
	}
	return render(w, s, look{width: narrow, only: words})
}

// Order is `failover test` and `failover reset` for who has the rights. It returns what Run prints.
func (p Program) Order(ctx context.Context, cfg config.Config, order handoff.Order, word string) error {
	return (&app{Program: p}).carryOut(ctx, cfg, order, word, func() (bool, error) { return false, nil })
}

// CompleteUplinks are the words that the shell offers after `failover test`.
func (p Program) CompleteUplinks(ctx context.Context, path string) []string {
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	words, _ := (&app{Program: p, configPath: path}).completeUplinks(cmd, nil, "")
	return words
}

// Differs is what `explain` does where the kernel says something else.
func (p Program) Differs(s explain.Snapshot) error {
	return (&app{Program: p}).differs(s, explainOptions{})
}
