"""The engine: trunk queue, model writer, publisher, versions, applying and exporting. Knows no wire."""
