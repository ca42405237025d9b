{{/* What KEDA makes of addresses. */}}

{{/* The management API with the virtual host in its path, percent-encoded. KEDA's own encoding of `vhostName` turns a space into `+`, which is
     another virtual host to a path. Of a path in which Go would encode just the same, KEDA takes the decoded text and puts that into its
     question: a `%`, `?` or `#` would then not be itself any more, so that names with one of them are encoded to the last letter. */}}
{{- define "inferq.kedaHost" -}}
{{- $vhost := .Values.broker.vhost }}
{{- if regexMatch "[%?#]" $vhost }}
{{- $vhost = printf "% X" $vhost | replace " " "%" | printf "%%%s" }}
{{- else }}
{{- $vhost = urlquery $vhost | replace "+" "%20" }}
{{- end }}
{{- printf "%s/%s" (trimSuffix "/" .Values.broker.management.uri) $vhost }}
{{- end }}
