package engineapi

import "net/http"

// storeRoutes serves imgfs' own routes of the store as a whole: references, graph, fsck. done says that the
// request was one of them.
func (s *server) storeRoutes(w http.ResponseWriter, r *http.Request, path string) (done bool, err error) {
	return false, nil
}
