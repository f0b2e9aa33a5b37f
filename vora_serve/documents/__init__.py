"""The pages of a PDF file as images, rendered by a program without rights.

The renderer is PDFium, Chrome's: no PDF renderer that is safe by its language draws what people
send, and PDFium is the one that is fuzzed without pause. It is not trusted all the same: see
:mod:`vora_serve.documents.sandbox`.
"""
