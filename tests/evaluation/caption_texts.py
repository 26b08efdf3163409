"""Captions as people write them, with what a tokenizer may stumble over."""

CAPTIONS = """
A man riding a wave on top of a surfboard.
A black-and-white photo of a man's dog, sitting on a bench
Two giraffes standing next to each other in a field.
The woman isn't looking at the camera; she's reading a book.
A baseball player #24 swings his bat at 3:30 p.m. during a game
a red double-decker bus driving down the street in the U.S.
A group of 1,000 people at the St. Patrick's Day parade!
A sign that says "STOP" and below it "ALL-WAY"
There are 3.5 slices of pizza (with pepperoni) on the plate
A cat sitting on a person's lap... sleeping?
A close up of a plate of food with broccoli & rice
kids can't wait to eat cake -- it's chocolate
A train on the tracks near a mother-in-law's house.
An old T-shirt, worn-out jeans and a pair of shoes
Mr. and Mrs. Smith cutting a wedding cake.
A 50/50 split of apples and oranges in a bowl
A clock tower reading 10:10
people flying kites on the beach , sunny day .
A giraffe's head over the fence; zebras' stripes behind it
A dog's ball that doesn't belong to it, isn't it cute?
a skateboarder doing a trick in mid-air
Fruit: apples, bananas, and pears for $2.99
A man with an e-mail printed on paper
Motorcycles parked on the side of the road w/ helmets
The children are gonna eat; they cannot wait
A bathroom with a toilet, sink, and bath tub
A half-eaten sandwich [on a plate]
An airplane (Boeing 747) taking off
The pitcher's about to throw the ball, he'll throw it fast
Someone's hand holding a smart-phone that they've dropped
""".strip().splitlines()
