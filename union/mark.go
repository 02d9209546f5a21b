package union

import (
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
)

// isMark reports whether an attribute is one of layertar's marks.
func isMark(name string) bool { return strings.HasPrefix(name, erofs.MarkerPrefix) }
