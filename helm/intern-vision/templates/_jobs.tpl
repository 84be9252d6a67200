{{/* Metadata and pod of what the chart runs once. Call with
     (dict "root" $ "component" "doctor" "suffix" "doctor" "account" "doctor" "hooks" "test" "weight" 0 "args" (list ...)
           "timeout" 300 "token" true "pipelines" false). */}}
{{- define "intern-vision.onceMetadata" -}}
name: {{ include "intern-vision.fullname" .root }}-{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "intern-vision.podLabels" . | nindent 2 }}
annotations:
  helm.sh/hook: {{ .hooks }}
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation
{{- end -}}

{{- define "intern-vision.oncePod" -}}
{{- $root := .root -}}
restartPolicy: Never
serviceAccountName: {{ include "intern-vision.fullname" $root }}-{{ .account }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
{{- include "intern-vision.pullSecrets" $root }}
{{ include "intern-vision.podSecurity" $root }}
containers:
  - name: {{ .component }}
    image: {{ include "intern-vision.image" (dict "root" $root "image" $root.Values.image) }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [intern]
    args:
      {{- toYaml .args | nindent 6 }}
    env:
      {{- include "intern-vision.stepEnv" $root | nindent 6 }}
      - {name: HOME, value: /tmp}
      - {name: PYTHONUNBUFFERED, value: "1"}
    {{- include "intern-vision.containerSecurity" $root | nindent 4 }}
    resources:
      {{- toYaml $root.Values.jobResources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if .pipelines }}
      - {name: pipelines, mountPath: /etc/intern/pipelines, readOnly: true}
      {{- end }}
      {{- if $root.Values.kfp.multiUser }}
      - {name: kfp-token, mountPath: /var/run/secrets/kubeflow/pipelines, readOnly: true}
      {{- end }}
      {{- include "intern-vision.caMount" $root | nindent 6 }}
volumes:
  - name: tmp
    emptyDir: {}
  {{- if .pipelines }}
  - name: pipelines
    configMap: {name: {{ include "intern-vision.fullname" $root }}-pipelines}
  {{- end }}
  {{- if $root.Values.kfp.multiUser }}
  - name: kfp-token
    projected:
      sources:
        - serviceAccountToken: {path: token, expirationSeconds: 7200, audience: {{ $root.Values.kfp.tokenAudience }}}
  {{- end }}
  {{- include "intern-vision.caVolume" $root | nindent 2 }}
{{- end -}}

{{- define "intern-vision.job" -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "intern-vision.onceMetadata" . | nindent 2 }}
spec:
  backoffLimit: {{ .retries }}
  activeDeadlineSeconds: {{ .timeout }}
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      labels:
        {{- include "intern-vision.podLabels" . | nindent 8 }}
    spec:
      {{- include "intern-vision.oncePod" . | nindent 6 }}
{{- end -}}

{{/* A pod and not a job: `helm test --logs` shows the logs of pods alone. */}}
{{- define "intern-vision.testPod" -}}
apiVersion: v1
kind: Pod
metadata:
  {{- include "intern-vision.onceMetadata" . | nindent 2 }}
spec:
  activeDeadlineSeconds: {{ .timeout }}
  {{- include "intern-vision.oncePod" . | nindent 2 }}
{{- end -}}

{{/* Arguments that lead to Kubeflow Pipelines. */}}
{{- define "intern-vision.kfpArgs" -}}
- --kfp-url={{ .Values.kfp.apiUrl }}
{{- if .Values.kfp.multiUser }}
- --kfp-namespace={{ .Release.Namespace }}
{{- end }}
{{- end -}}
