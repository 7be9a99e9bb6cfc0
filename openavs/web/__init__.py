"""The page of `openavs serve`.

`page` alone knows Gradio's components and `server` puts them on a socket; what they show and do is in modules that do
without: `menu` (which recipes), `models` (what is loaded), `wishes` (what a visitor may ask for), `running` (one clip
through the pipeline), `sessions` and `products` (the files), `fragments` (the HTML), `visits` (all of these together),
`guard` (what the server answers at all), `ending` (what it says when it is interrupted).
"""
