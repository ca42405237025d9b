//! What is known of a value of the graph: its shape, where its rows are, and what its elements depend on.

use std::rc::Rc;

use super::size::{Origin, Size};

/// A tensor, or a sequence of tensors that are alike.
#[derive(Debug, Clone)]
pub(super) struct Value {
    /// `None` where not even the number of axes is known.
    pub shape: Option<Rc<[Size]>>,
    /// The axis along which the rows lie, if there is one.
    pub rows: Option<RowAxis>,
    pub content: Content,
    /// The elements, row-major, of a small tensor of integers or truth values that depends on no row's values.
    pub elements: Option<Rc<[Size]>>,
    /// The elements of a small constant of floats.
    pub floats: Option<Rc<[f32]>>,
}

/// An axis of `before × rows × after` places: of each row there are `after` neighbouring ones, `before` times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowAxis {
    pub axis: usize,
    pub before: Size,
    pub after: Size,
}

/// What the elements of a value depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// No row: they are the same in every run of jobs that may share one.
    Shared,
    /// At each place of the row axis, the values of that row alone.
    Own,
    /// How many rows there are.
    Count,
    /// At each place of the row axis, the place of that row among the others.
    Place,
    /// As `Own`, but for the first element along the last axis, which is the place of the row: an index into other rows.
    Led,
    /// Several rows, or how many there are; a node says why.
    Coupled(Rc<str>),
    /// It cannot be told; a node says why.
    Unknown(Rc<str>),
}

impl RowAxis {
    /// One place for each row.
    pub fn plain(axis: usize) -> Self {
        Self {
            axis,
            before: Size::one(),
            after: Size::one(),
        }
    }

    pub fn at(&self, axis: usize) -> Self {
        Self { axis, ..self.clone() }
    }

    pub fn is_plain(&self) -> bool {
        self.before.is(1) && self.after.is(1)
    }

    pub fn size(&self) -> Option<Size> {
        self.before.times(&Size::rows())?.times(&self.after)
    }
}

impl Content {
    /// True where neighbours or the lack of knowledge have spoilt it.
    pub fn is_spoilt(&self) -> bool {
        matches!(self, Self::Coupled(_) | Self::Unknown(_))
    }

    /// What depends on both; `place` and `count` are for rows that meet their place or their number.
    pub fn and(&self, other: &Self, count: impl FnOnce() -> Self, place: impl FnOnce() -> Self) -> Self {
        match (self, other) {
            (Self::Coupled(_), _) => self.clone(),
            (_, Self::Coupled(_)) => other.clone(),
            (Self::Unknown(_), _) => self.clone(),
            (_, Self::Unknown(_)) => other.clone(),
            (Self::Shared, it) | (it, Self::Shared) => it.clone(),
            (Self::Place | Self::Led, _) | (_, Self::Place | Self::Led) => place(),
            (Self::Own, Self::Own) => Self::Own,
            (Self::Count, Self::Count) => Self::Count,
            (Self::Count, Self::Own) | (Self::Own, Self::Count) => count(),
        }
    }
}

impl Value {
    pub fn shared(shape: Option<Vec<Size>>) -> Self {
        Self::of(shape, None, Content::Shared)
    }

    pub fn of(shape: Option<Vec<Size>>, rows: Option<RowAxis>, content: Content) -> Self {
        Self {
            shape: shape.map(Into::into),
            rows,
            content,
            elements: None,
            floats: None,
        }
    }

    /// Of which nothing but the content is known.
    pub fn spoilt(content: Content) -> Self {
        Self::of(None, None, content)
    }

    /// A tensor of integers whose elements are known.
    pub fn integers(shape: Vec<Size>, elements: Vec<Size>) -> Self {
        let is_free = elements.iter().all(|element| element.origin() == Origin::Free);
        let content = if is_free { Content::Shared } else { Content::Count };
        Self {
            elements: Some(elements.into()),
            ..Self::of(Some(shape), None, content)
        }
    }

    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(|shape| shape.len())
    }

    pub fn size(&self, axis: usize) -> Option<&Size> {
        self.shape.as_ref()?.get(axis)
    }

    /// The axis that a number means, counted from the end if it is negative; `None` where the end is not known or there is none.
    pub fn axis(&self, axis: i64) -> Option<usize> {
        match self.rank() {
            Some(rank) => absolute(axis, rank),
            None => usize::try_from(axis).ok(),
        }
    }

    pub fn row_axis(&self) -> Option<usize> {
        self.rows.as_ref().map(|rows| rows.axis)
    }

    /// The constants that its elements are; `None` if one of them is not.
    pub fn constants(&self) -> Option<Vec<i64>> {
        self.elements.as_ref()?.iter().map(Size::to_constant).collect()
    }

    /// The only element of a constant.
    pub fn constant(&self) -> Option<i64> {
        match self.constants()?[..] {
            [constant] => Some(constant),
            _ => None,
        }
    }

    /// As it is, without what is known of its elements.
    #[must_use]
    pub fn without_elements(&self) -> Self {
        Self {
            elements: None,
            floats: None,
            ..self.clone()
        }
    }

    /// True of one number, or of one in any number of axes.
    pub fn is_single(&self) -> bool {
        self.shape
            .as_ref()
            .is_some_and(|shape| shape.iter().all(|size| size.is(1)))
    }
}

/// The axis that a number means among `rank` of them.
pub(super) fn absolute(axis: i64, rank: usize) -> Option<usize> {
    let from_end = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(from_end).ok().filter(|axis| *axis < rank)
}
