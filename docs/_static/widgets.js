// Where require.js finds the modules of widgets: beside this file.
require.config({ paths: { anywidget: document.currentScript.src.replace(/[^/]*$/, 'anywidget') } });
