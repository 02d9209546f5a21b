package engineapi

import "net/http"

// treeRoutes serves imgfs' own routes that read trees. done says that the
// request was one of them.
func (s *server) treeRoutes(w http.ResponseWriter, r *http.Request, path string) (done bool, err error) {
	return false, nil
}
