// Drafting: a small program steps on by itself, each request with its likeliest tokens, for as long as that is worth it.
// The definition, in numpy, is src/realm/kernels/drafting.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program.h"

namespace realm {

// As DraftPlan in drafting.py. S requests draft: those whose last token is judged in `first`.
struct DraftPlan {
  StepInput first;
  int max_steps, num_classes;
  const std::int32_t* limits;     // [S] draft tokens at most
  const float* rates;             // [S, C] chance of a guess, by how sure the model is of it
  const float* means;             // [S] chance of a guess before it is known
  const float* bounds;            // [C - 1] between classes: the model's own probability of its guess
  const std::int32_t* token_ids;  // [V_draft] what the program's outputs are called; null if they are token ids
  float worth_verifying;          // a guess is drafted if everything up to it is right with more than this chance...
  float worth_drafting;           // ...and the next one is worked out if it is right with more than this
};

struct DraftResult {
  std::int32_t *tokens, *classes;      // [S, max_steps] guesses
  std::int32_t *num_guesses, *num_drafts;  // [S]; the last guess of a request may not be worth drafting
  std::int32_t* step_rows;             // [max_steps]
  double* step_seconds;
};

// Gives the number of steps. Throws std::invalid_argument on bad input.
int draft(Program& program, const DraftPlan& plan, const DraftResult& result);

}  // namespace realm
