# ruff: noqa: E501
"""What the benchmark of speculation asks: work that copies, and open chat."""

from __future__ import annotations

_PASSAGES = (
    "The lighthouse keeper climbed the stairs every evening at six. He carried a small brass lamp, a loaf of bread and "
    "a book with a torn cover. When the fog came in from the west, he rang the bell once every minute until the ships "
    "had passed. On clear nights he read, and on the first day of each month he wrote a letter to his sister in Bergen.",
    "Our delivery team met on Tuesday to review the quarter. Sales in the northern region grew by twelve percent, while "
    "the southern region lost two customers to a competitor. The warehouse in Leeds will close in March, and its stock "
    "will move to Manchester. Maria will prepare the new schedule, and Tom will inform the drivers by Friday.",
    "To repot the plant, choose a pot that is two centimetres wider than the old one. Cover the hole with a piece of "
    "broken clay, and fill a third of the pot with fresh soil. Loosen the roots with your fingers, set the plant in the "
    "middle, and fill in the rest. Water it well, and keep it out of the sun for a week.",
    "Glaciers form where more snow falls in winter than melts in summer. Over decades the snow is pressed into ice, and "
    "the ice begins to flow downhill under its own weight. It carries stones and sand with it, grinds the valley floor, "
    "and leaves long ridges of rubble, called moraines, where it ends.",
)
_JSON = (
    '{"orders": [{"id": 1041, "customer": "Hanna Weber", "items": ["lamp", "chair"], "total": 184.5, "paid": true}, '
    '{"id": 1042, "customer": "Luis Ortega", "items": ["desk"], "total": 320.0, "paid": false}, '
    '{"id": 1043, "customer": "Aiko Tanaka", "items": ["shelf", "mirror"], "total": 96.25, "paid": true}]}',
    '{"name": "weather-station", "version": "2.4.1", "sensors": [{"type": "temperature", "unit": "celsius", "pin": 4}, '
    '{"type": "humidity", "unit": "percent", "pin": 7}, {"type": "pressure", "unit": "hectopascal", "pin": 12}], '
    '"interval_seconds": 60, "upload": {"host": "data.example.org", "port": 8883, "secure": true}}',
)
# Tasks that SmolLM2 answers by copying: where it paraphrases instead of quoting there is nothing to copy.
COPY: tuple[str, ...] = (
    f"Correct the spelling in this text, and change nothing else:\n\n{_PASSAGES[1].replace('quarter', 'quater')}",
    f"Repeat this JSON exactly, with the id 1042 changed to 1052:\n\n{_JSON[0]}",
    f"Quote this passage word for word:\n\n{_PASSAGES[1]}",
    f"Please proofread the following text and return it with corrections only where needed:\n\n{_PASSAGES[0].replace('clear', 'cleer')}",
    f"Repeat this JSON exactly, with the version changed to 2.5.0:\n\n{_JSON[1]}",
    f"Repeat the following text word for word:\n\n{_PASSAGES[0]}",
    f"Repeat this JSON exactly:\n\n{_JSON[0]}",
    f"Put this text in quotation marks:\n\n{_PASSAGES[2]}",
)

CHAT: tuple[str, ...] = (
    "What is the difference between a virus and a bacterium?",
    "Write a short story about a dog that finds a map.",
    "How can I sleep better at night?",
    "Explain how a bicycle stays upright.",
    "Give me five ideas for a birthday party at home.",
    "Why is the sky blue?",
    "Write an email to my landlord about a broken heater.",
    "What should I pack for a week of hiking in the mountains?",
    "Describe the city of Rome to someone who has never been there.",
    "How do I make a simple tomato soup?",
    "What are the benefits of learning a second language?",
    "Explain photosynthesis to a ten-year-old.",
    "Tell me about the history of the printing press.",
    "How does a computer store a picture?",
    "Give me advice for a first job interview.",
    "What would happen if the moon disappeared?",
)
