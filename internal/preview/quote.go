package preview

import (
	"strings"

	"multihomed/internal/shell"
)

// document is a here-document for a command: its lines as they are if they print, else with expansions.
func document(command string, lines []string) string {
	text := strings.Join(lines, "\n") + "\n"
	if shell.Prints(strings.ReplaceAll(text, "\n", "")) {
		return command + " <<'END'\n" + text + "END"
	}
	for i, line := range lines {
		lines[i] = shell.Expanded(line, "\\$`")
	}
	return command + " <<END\n" + strings.Join(lines, "\n") + "\nEND"
}
