package engineapi

import "net/http"

// layerRoutes serves imgfs' own routes of single layers. done says that the
// request was one of them.
func (s *server) layerRoutes(w http.ResponseWriter, r *http.Request, path string) (done bool, err error) {
	return false, nil
}
