package union

import (
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
)

const (
	markWhiteout = erofs.MarkerPrefix + "whiteout"
	markOpaque   = erofs.MarkerPrefix + "opaque"
	markImplied  = erofs.MarkerPrefix + "implied"
	markLink     = erofs.MarkerPrefix + "link"
)

func isMark(name string) bool { return strings.HasPrefix(name, erofs.MarkerPrefix) }
