{{/* The configuration of inferq: how it reaches the broker, and inferq.toml of each pool. */}}

{{/* The port of a broker that the values name. */}}
{{- define "inferq.brokerPort" -}}
{{- default (ternary 5671 5672 .Values.broker.tls.enabled) .Values.broker.port | int64 }}
{{- end }}

{{/* The sections `broker` and `topology` as every command needs them, as JSON. */}}
{{- define "inferq.brokerConfig" -}}
{{- $folder := "/etc/inferq/broker" }}
{{- $given := .Values.broker }}
{{- $broker := dict }}
{{- if eq $given.login "uri" }}
{{- $_ := set $broker "uri_file" (printf "%s/uri" $folder) }}
{{- else }}
{{- $scheme := ternary "amqps" "amqp" $given.tls.enabled }}
{{- $port := include "inferq.brokerPort" . }}
{{- $vhost := $given.vhost | urlquery | replace "+" "%20" }}
{{- $_ := set $broker "uri" (printf "%s://%s:%s/%s" $scheme $given.host $port $vhost) }}
{{- end }}
{{- if eq $given.login "password" }}
{{- $_ := set $broker "username_file" (printf "%s/username" $folder) }}
{{- $_ := set $broker "password_file" (printf "%s/password" $folder) }}
{{- end }}
{{- if or $given.tls.ca.existingSecret $given.tls.ca.existingConfigMap }}
{{- $_ := set $broker "ca_file" (printf "%s/ca.crt" $folder) }}
{{- end }}
{{- if $given.tls.clientCertificate.existingSecret }}
{{- $_ := set $broker "client_certificate_file" (printf "%s/tls.crt" $folder) }}
{{- $_ := set $broker "client_key_file" (printf "%s/tls.key" $folder) }}
{{- end }}
{{- $topology := dict "prefix" .Values.topology.prefix "queue_type" .Values.topology.queueType "delivery_limit" .Values.topology.deliveryLimit }}
{{- dict "broker" $broker "topology" $topology | toJson }}
{{- end }}

{{/* The same as environment variables, for commands without a configuration file. */}}
{{- define "inferq.brokerEnvironment" -}}
{{- $variables := list }}
{{- range $section, $keys := include "inferq.brokerConfig" . | fromJson }}
{{- range $key, $value := $keys }}
{{- $name := printf "INFERQ_%s__%s" $section $key | upper }}
{{- $variables = append $variables (dict "name" $name "value" (include "inferq.text" $value)) }}
{{- end }}
{{- end }}
{{- toYaml $variables }}
{{- end }}

{{/* The volume with the files of `inferq.brokerConfig`, readable by the group, which is fsGroup. Takes a dict of root and own: a Secret
     with another login, or nothing. */}}
{{- define "inferq.brokerVolume" -}}
{{- $given := .root.Values.broker }}
{{- $certificate := $given.tls.clientCertificate.existingSecret }}
{{- if eq $given.login "certificate" }}{{ $certificate = default $certificate .own }}{{ end }}
- name: broker
  projected:
    defaultMode: 0440
    sources:
      {{- if ne $given.login "certificate" }}
      - secret:
          name: {{ default $given.existingSecret .own }}
          items:
            {{- if eq $given.login "uri" }}
            - {key: {{ $given.uriKey | quote }}, path: uri}
            {{- else }}
            - {key: {{ $given.usernameKey | quote }}, path: username}
            - {key: {{ $given.passwordKey | quote }}, path: password}
            {{- end }}
      {{- end }}
      {{- with $given.tls.ca }}
      {{- if .existingSecret }}
      - secret:
          name: {{ .existingSecret }}
          items: [{key: {{ .key | quote }}, path: ca.crt}]
      {{- else if .existingConfigMap }}
      - configMap:
          name: {{ .existingConfigMap }}
          items: [{key: {{ .key | quote }}, path: ca.crt}]
      {{- end }}
      {{- end }}
      {{- with $given.tls.clientCertificate }}
      {{- if $certificate }}
      - secret:
          name: {{ $certificate }}
          items:
            - {key: {{ .certificateKey | quote }}, path: tls.crt}
            - {key: {{ .keyKey | quote }}, path: tls.key}
      {{- end }}
      {{- end }}
{{- end }}

{{/* inferq.toml of a pool. Takes a dict of root, name and pool. */}}
{{- define "inferq.toml" -}}
{{- $pool := .pool }}
{{- $values := .root.Values }}
{{- $config := deepCopy $values.config }}
{{- include "inferq.merge" (dict "into" $config "from" (deepCopy $pool.config)) }}
{{- include "inferq.merge" (dict "into" $config "from" (include "inferq.brokerConfig" .root | fromJson)) }}
{{- $own := dict "models" (dict "repository" (include "inferq.modelPath" $pool) "load" $pool.models) }}
{{- $_ := set $own "topology" (dict "mode" $values.topology.workerMode) }}
{{- $drain := mulf $pool.drainTimeoutSeconds 1000 | int64 }}
{{- $_ := set $own "worker" (dict "device" (ternary "cuda:0" "cpu" (eq $pool.device "cuda")) "drain_timeout_ms" $drain) }}
{{- $limit := include "inferq.memoryLimit" $pool }}
{{- if and $limit (kindIs "invalid" (dig "limits" "memory_bytes" nil $config)) }}
{{- /* Not above what inferq allows, 1 TiB. */}}
{{- $_ := set $own "limits" (dict "memory_bytes" (min (div (int64 $limit) 2) 1099511627776)) }}
{{- end }}
{{- include "inferq.merge" (dict "into" $config "from" $own) }}
{{- $sections := list }}
{{- range $section, $keys := $config }}
{{- $lines := list (printf "[%s]" $section) }}
{{- range $key, $value := $keys }}
{{- if or (kindIs "slice" $value) (kindIs "string" $value) }}
{{- $lines = append $lines (printf "%s = %s" $key (toJson $value)) }}
{{- else if not (kindIs "invalid" $value) }}
{{- $lines = append $lines (printf "%s = %s" $key (include "inferq.text" $value)) }}
{{- end }}
{{- end }}
{{- $sections = append $sections (join "\n" $lines) }}
{{- end }}
{{- join "\n\n" $sections }}
{{- end }}

{{/* A value as text; numbers come from YAML as floats, which would become 1e+06. */}}
{{- define "inferq.text" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}
