package engineapi

import "net/http"

// nameRoutes serves docker's routes of single images: history, tag, push and so on. done says that the
// request was one of them.
func (s *server) nameRoutes(w http.ResponseWriter, r *http.Request, path string) (done bool, err error) {
	return false, nil
}
