{{/* Every name by which a client may reach MLflow, alone and with any port: its host check wants both, and an own list
     replaces its default. */}}
{{- define "intern-vision.allowedHosts" -}}
{{- $service := printf "%s-mlflow" (include "intern-vision.fullname" .) -}}
{{- $ns := .Release.Namespace -}}
{{- $names := list "localhost" "127.0.0.1" $service (printf "%s.%s" $service $ns) (printf "%s.%s.svc" $service $ns) (printf "%s.%s.svc.%s" $service $ns .Values.clusterDomain) -}}
{{- with .Values.mlflow.ingress }}{{- if .enabled }}{{- $names = append $names .host }}{{- end }}{{- end -}}
{{- $names = concat $names .Values.mlflow.allowedHosts | uniq -}}
{{- $hosts := list -}}
{{- range $names }}{{- $hosts = concat $hosts (list . (printf "%s:*" .)) }}{{- end -}}
{{- join "," $hosts -}}
{{- end -}}

{{/* Environment of MLflow's containers; a name of extraEnv replaces the chart's. Call with (dict "root" $ "extra" yaml). */}}
{{- define "intern-vision.mlflowEnv" -}}
{{- $own := concat (include "intern-vision.mlflowCommonEnv" .root | fromYamlArray) (.extra | fromYamlArray) -}}
{{- $theirs := .root.Values.mlflow.extraEnv -}}
{{- $env := list -}}
{{- range $own }}{{- if not (hasKey $theirs .name) }}{{- $env = append $env . }}{{- end }}{{- end -}}
{{- range $name, $value := $theirs }}{{- $env = append $env (dict "name" $name "value" (toString $value)) }}{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{- define "intern-vision.mlflowCommonEnv" -}}
{{- $m := .Values.mlflow -}}
- name: MLFLOW_BACKEND_STORE_URI
{{- if eq $m.database.type "sqlite" }}
  value: sqlite:////data/mlflow.db
{{- else }}
  valueFrom:
    secretKeyRef: {name: {{ $m.database.existingSecret }}, key: {{ $m.database.uriKey }}}
{{- end }}
{{- $endpoint := include "intern-vision.s3Endpoint" . }}
{{- if ne $endpoint "aws" }}
- name: MLFLOW_S3_ENDPOINT_URL
  value: {{ $endpoint | quote }}
{{- end }}
{{- if $m.auth.enabled }}
- name: MLFLOW_AUTH_CONFIG_PATH
  value: /run/mlflow/auth.ini
{{- end }}
- name: MLFLOW_DISABLE_TELEMETRY
  value: "true"
- name: GIT_PYTHON_REFRESH
  value: quiet
- name: HOME
  value: /tmp
{{ include "intern-vision.s3Keys" . }}
{{- end -}}

{{- define "intern-vision.serverEnv" -}}
{{- $m := .Values.mlflow -}}
- name: MLFLOW_ARTIFACTS_DESTINATION
  value: s3://{{ .Values.objectStore.bucket }}/mlflow
- name: MLFLOW_SERVER_ALLOWED_HOSTS
  value: {{ include "intern-vision.allowedHosts" . | quote }}
- name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION
  value: "false"
{{- if $m.auth.enabled }}
- name: MLFLOW_AUTH_ADMIN_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ include "intern-vision.mlflowSecret" . }}, key: {{ $m.auth.usernameKey }}}
- name: MLFLOW_AUTH_ADMIN_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "intern-vision.mlflowSecret" . }}, key: {{ $m.auth.passwordKey }}}
- name: MLFLOW_FLASK_SERVER_SECRET_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "intern-vision.mlflowSecret" . }}, key: {{ $m.auth.sessionKey }}}
{{- end }}
{{- end -}}

{{- define "intern-vision.prepareEnv" -}}
{{- $m := .Values.mlflow -}}
- name: MIGRATE
  value: {{ ternary "1" "" $m.database.migrate | quote }}
- name: BUCKET
  value: {{ ternary .Values.objectStore.bucket "" .Values.objectStore.createBucket | quote }}
{{- if $m.auth.enabled }}
- name: AUTH_DEFAULT_PERMISSION
  value: {{ $m.auth.defaultPermission }}
- name: AUTH_DATABASE_URI
{{- if eq $m.database.type "sqlite" }}
  value: sqlite:////data/auth.db
{{- else }}
  valueFrom:
    secretKeyRef: {name: {{ $m.database.existingSecret }}, key: {{ $m.database.authUriKey }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "intern-vision.mlflowMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.mlflow.auth.enabled }}
- {name: auth, mountPath: /run/mlflow}
{{- end }}
{{- if eq .Values.mlflow.database.type "sqlite" }}
- {name: data, mountPath: /data}
{{- end }}
{{- include "intern-vision.caMount" . }}
{{- end -}}
