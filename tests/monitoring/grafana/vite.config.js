// React is taken as it is: no plugin is needed to build a page once.
export default {
  base: './',
  esbuild: { jsx: 'automatic' },
  build: { chunkSizeWarningLimit: 1e5, target: 'esnext' },
  define: { 'process.env.NODE_ENV': '"production"', 'process.env': '{}' },
};
