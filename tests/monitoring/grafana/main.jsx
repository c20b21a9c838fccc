// Draws one board by its JSON with Grafana's own panels, asking a Prometheus that answers other origins.
//
// The address says what: ?board=URL&prometheus=URL&start=S&end=S&theme=dark&values={"namespace": "default"}
// What a Grafana server does beside it (variables by query, transformations, links) is not here.
import { createRoot } from 'react-dom/client';
import { useEffect, useState } from 'react';
import { Global } from '@emotion/react';
import {
  FieldType, applyFieldOverrides, createTheme, dateTime, getDisplayProcessor, getFieldDisplayName, standardEditorsRegistry,
  standardFieldConfigEditorRegistry, ThemeContext, toDataFrame,
} from '@grafana/data';
import { BigValue, BigValueTextMode, GlobalStyles, PanelChrome, TimeSeries, VizRepeater } from '@grafana/ui';

const asked = new URLSearchParams(location.search);
const start = Number(asked.get('start'));
const end = Number(asked.get('end'));
const values = JSON.parse(asked.get('values') ?? '{}');
const theme = createTheme({ colors: { mode: asked.get('theme') ?? 'dark' } });
const COLUMN = 64, ROW = 34, GAP = 8;

// Of the properties that an override may set, those that ours do; the editors are the server's.
standardFieldConfigEditorRegistry.setInit(() => ['unit', 'displayName', 'color'].map((id) => ({
  id, path: id, name: id, process: (value) => value, shouldApply: () => true, editor: () => null, override: () => null,
})));
standardEditorsRegistry.setInit(() => []);

function filled(text) {
  return text.replace(/\$\{?(\w+)\}?/g, (whole, name) => values[name] ?? whole);
}

async function frames(target) {
  const step = Math.max(1, (end - start) / 250);
  const path = target.instant
    ? `query?${new URLSearchParams({ query: filled(target.expr), time: end })}`
    : `query_range?${new URLSearchParams({ query: filled(target.expr), start, end, step })}`;
  const answer = await (await fetch(`${asked.get('prometheus')}/api/v1/${path}`)).json();
  if (answer.status !== 'success') throw new Error(answer.error);
  return answer.data.result.map((series) => {
    const name = target.legendFormat
      ? target.legendFormat.replace(/{{\s*(\w+)\s*}}/g, (_, label) => series.metric[label] ?? '')
      : JSON.stringify(series.metric).replace('{}', 'value');
    const points = series.values ?? [series.value];
    return toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: points.map(([at]) => at * 1000) },
        {
          name: 'Value', type: FieldType.number, values: points.map(([, value]) => (Number.isFinite(Number(value)) ? Number(value) : null)),
          labels: series.metric, config: { displayNameFromDS: name },
        },
      ],
    });
  });
}

async function dataOf(panel) {
  const found = (await Promise.all(panel.targets.map(frames))).flat();
  const defaults = { color: { mode: 'palette-classic' }, ...panel.fieldConfig?.defaults };
  return applyFieldOverrides({
    data: found, theme, fieldConfig: { overrides: [], ...panel.fieldConfig, defaults }, replaceVariables: (text) => text,
    fieldConfigRegistry: standardFieldConfigEditorRegistry, timeZone: 'utc',
  });
}

function Lines({ panel, data, width, height }) {
  const legend = { displayMode: 'list', placement: 'bottom', showLegend: true, calcs: [], ...panel.options?.legend };
  for (const frame of data) {
    for (const field of frame.fields) {
      if (field.type === FieldType.number) {
        field.config.custom = { drawStyle: 'line', lineWidth: 1, fillOpacity: 0, showPoints: 'auto', spanNulls: false,
          axisPlacement: 'auto', scaleDistribution: { type: 'linear' }, ...panel.fieldConfig?.defaults?.custom };
      }
    }
  }
  const range = { from: dateTime(start * 1000), to: dateTime(end * 1000), raw: { from: 'now-1h', to: 'now' } };
  return <TimeSeries frames={data} structureRev={1} width={width} height={height} timeZone="utc" timeRange={range}
    legend={legend} tweakAxis={(options) => options} />;
}

function Numbers({ panel, data, width, height }) {
  const shown = data.flatMap((frame) => frame.fields.filter((field) => field.type === FieldType.number).map((field) => {
    const display = field.display ?? getDisplayProcessor({ field, theme });
    return { ...display(field.values[field.values.length - 1]), title: getFieldDisplayName(field, frame, data) };
  }));
  const mode = panel.options?.textMode ?? BigValueTextMode.Auto;
  return <VizRepeater getValues={() => shown} width={width} height={height} orientation="auto" source={data} renderCounter={0}
    renderValue={({ value, width: w, height: h }) => <BigValue value={value} width={w} height={h} theme={theme}
      colorMode="value" graphMode="none" justifyMode="auto"
      textMode={mode === 'auto' ? BigValueTextMode.Value : mode} />} />;
}

function Panel({ panel }) {
  const [data, setData] = useState(null);
  const [error, setError] = useState('');
  useEffect(() => { dataOf(panel).then(setData, (reason) => setError(String(reason))); }, []);
  const place = panel.gridPos;
  const width = place.w * COLUMN - GAP, height = place.h * ROW - GAP;
  const empty = data !== null && data.length === 0;
  const state = error ? 'failed' : data === null ? 'loading' : empty ? 'empty' : 'drawn';
  return (
    <div data-panel={panel.title} data-state={state} title={error}
      style={{ position: 'absolute', left: place.x * COLUMN + GAP, top: place.y * ROW + GAP }}>
      <PanelChrome title={panel.title} width={width} height={height}>
        {(w, h) => error ? <pre>{error}</pre> : data === null ? null
          : empty ? <div style={{ textAlign: 'center', paddingTop: h / 3 }}>No data</div>
          : panel.type === 'stat' ? <Numbers panel={panel} data={data} width={w} height={h} />
          : <Lines panel={panel} data={data} width={w} height={h} />}
      </PanelChrome>
    </div>
  );
}

function Board({ board }) {
  const bottom = Math.max(...board.panels.map((panel) => panel.gridPos.y + panel.gridPos.h));
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <Global styles={{ body: { background: theme.colors.background.canvas, color: theme.colors.text.primary,
        fontFamily: theme.typography.fontFamily, fontSize: theme.typography.fontSize, margin: 0 } }} />
      <div style={{ position: 'relative', width: 24 * COLUMN + GAP, height: bottom * ROW + GAP }}>
        {board.panels.map((panel) => panel.type === 'row'
          ? <h4 key={panel.id} style={{ position: 'absolute', left: GAP, top: panel.gridPos.y * ROW + GAP }}>{panel.title}</h4>
          : <Panel key={panel.id} panel={panel} />)}
      </div>
    </ThemeContext.Provider>
  );
}

const board = await (await fetch(asked.get('board'))).json();
createRoot(document.getElementById('root')).render(<Board board={board} />);
