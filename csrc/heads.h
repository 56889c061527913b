// What follows the product that makes the hidden layers (METHOD.md, Network), in one pass over their rows forward and one
// over the embeddings backward. A group is one modality of one run; its arrays follow one another, contiguous.
#pragma once

#include <cstdint>

namespace case_wtal {

struct HeadSizes {
  int64_t groups, rows, hidden, classes, clusters;
};

template <typename T>
struct HeadWeights {
  const T* hidden_bias;     // (groups, 2 hidden): of the layer under the class logits, then of the embedding
  const T* cas;             // (groups, classes, hidden)
  const T* cas_bias;        // (groups, classes)
  const T* directions;      // (groups, clusters + 1, hidden): unit prototypes, then the attention's weights
  const T* attention_bias;  // (groups)
};

template <typename T>
struct HeadOutputs {
  T* hidden;     // (groups, rows, 2 hidden): in, without bias; out, with bias and relu
  T* cas;        // (groups, rows, classes)
  T* attention;  // (groups, rows)
  T* logits;     // (groups, rows, clusters)
  T* lengths;    // (groups, rows), of the embeddings; at least 1e-12
};

// The class logits, the attention and the cluster logits, scale times the cosine of embedding and prototype.
template <typename T>
void heads_cpu(const HeadSizes& sizes, const HeadWeights<T>& weights, T scale, const HeadOutputs<T>& outputs,
               int num_threads);

template <typename T>
struct HeadCotangents {
  const T* embedding;  // (groups, rows, hidden), or null: 0
  const T* attention;
  const T* logits;  // or null: then clusters is 0, and the directions are the attention's weights alone
};

template <typename T>
struct HeadGradients {
  T* embedding;       // (groups, rows, hidden), before its relu
  T* bias;            // (groups, hidden), of the embedding's layer
  T* directions;      // what follows has the shapes in HeadWeights
  T* attention_bias;
};

// Of the attention and the cluster logits, to the embedding's layer. The class logits are not among them: few of their
// rows have a cotangent, and `case/heads.py` looks at no others.
// Sums over rows are made of sums over chunks, which depend on the sizes alone: the number of threads changes no bit.
template <typename T>
void heads_backward_cpu(const HeadSizes& sizes, const HeadWeights<T>& weights, T scale, const HeadOutputs<T>& outputs,
                        const HeadCotangents<T>& given, const HeadGradients<T>& gradients, int num_threads);

}  // namespace case_wtal
