package orders

import (
	"log/slog"
	"strings"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/suggest"
)

// Level reads a level of the log, as the configuration writes it. An error is a [WordError].
func Level(word string) (slog.Level, error) {
	level, is := config.ParseLevel(word)
	if !is {
		return 0, wrong("the level is %q%s; it may be %s", escape.Text(word), suggest.Question(word, config.LevelWords()), strings.Join(config.LevelWords(), ", "))
	}
	return level, nil
}
